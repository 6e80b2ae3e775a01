"""The real vLLM engine and the plugin's patches, on the bundled base."""
