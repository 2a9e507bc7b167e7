"""Policies, profiles and labels -> classes of endpoints, chains of policies, and members of selector sets. Pure."""
