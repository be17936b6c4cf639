"""Stoker, a serverless function platform for models: the control plane."""
