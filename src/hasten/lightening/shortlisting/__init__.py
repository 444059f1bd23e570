"""Which light architectures fit a budget on this machine, before anything is trained."""

from hasten.lightening.shortlisting.search import Shortlist, ShortlistEntry, shortlist

__all__ = ["Shortlist", "ShortlistEntry", "shortlist"]
