"""Weights to counts to order to plan to gather; provenance and ledger."""
