"""Which light architectures fit a budget on this machine, before anything is trained."""

from hasten.lightening.shortlisting.search import Entry, Shortlist, shortlist

__all__ = ["Entry", "Shortlist", "shortlist"]
