"""Tells group robots (DingTalk, WeCom) of alerts. They want bodies of their own; Alertmanager makes only its own."""
