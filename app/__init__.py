"""The dashboard: pick inputs, call moe_core, show, explain in one sentence."""
