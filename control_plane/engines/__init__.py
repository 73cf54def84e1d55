"""Engines that the installation trusts no more."""
