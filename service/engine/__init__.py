"""Token ids and an adapter to label logprobs."""
