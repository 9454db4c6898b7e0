"""The agent: one process per GPU, between the queue and one webui."""
