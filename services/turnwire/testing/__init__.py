"""Turnwire for tests: scripted and replayed models, and a mesh within a test.

Everything here is a documented feature for unit tests of what you build on Turnwire. The shipped configuration names
none of it.
"""
