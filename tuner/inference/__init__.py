"""Answers of base model, adapter and merged model."""
