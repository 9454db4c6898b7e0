"""Why jobs fail: which failures are alike, what they have in common, and what to do about it. Pure but for `desk`."""
