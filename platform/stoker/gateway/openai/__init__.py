"""OpenAI's dialect of the data plane."""
