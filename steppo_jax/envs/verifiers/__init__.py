"""Environments of the package verifiers as environments of ours."""
