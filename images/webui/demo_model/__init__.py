"""Trains the demo's model: a tiny AnimateDiff that draws coloured shapes which move as its prompt says."""
