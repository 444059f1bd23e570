"""Find the light architectures that fit a budget on this machine, before training any."""

from hasten.lightening.shortlisting.search import Shortlist, ShortlistEntry, shortlist

__all__ = ["Shortlist", "ShortlistEntry", "shortlist"]
