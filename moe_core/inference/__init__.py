"""What a trained model does with text: where its tokens are routed, and what it writes."""
