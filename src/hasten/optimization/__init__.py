"""The run: prepare, search, freeze, certify, deliver. Start reading at optimize.py."""
