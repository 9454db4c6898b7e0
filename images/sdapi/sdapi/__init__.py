"""AUTOMATIC1111's web API as values: bodies to job requests, results to answers, errors in their exact shapes.

Pure, standard library only. Each WebUI node and the api service behind the gateway serve it with code of their own
around it; what a client sees is the same. Facts: A1111 v1.10.1, the AnimateDiff extension v2.0.1-a.
"""

VERSION = "v1.10.1"
