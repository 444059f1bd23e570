"""The run: prepare, search, freeze, certify, deliver. Read optimize.py first."""
