"""Trials on the user's own machine and config: does it do what the README promises?"""
