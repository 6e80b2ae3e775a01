"""Conversation to token ids: the shared prefix, each classifier's tail, and the proof of label tokens."""
