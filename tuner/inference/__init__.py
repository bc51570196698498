"""Answers of base, adapter and merged model."""
