"""What touches a model: the router contract, capture, interventions. Only here does routing import torch."""
