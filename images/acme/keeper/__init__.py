"""Keeps the gateway's certificate fresh: asks an ACME directory through certbot, hands the pair to nginx."""
