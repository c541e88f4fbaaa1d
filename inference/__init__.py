"""Samplers, likelihood and evaluation of a trained model."""
