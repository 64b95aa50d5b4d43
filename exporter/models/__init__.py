"""The zoo. A model is known to `--model` once it is imported here; `base.py` is the contract it keeps."""

from exporter.models.base import REGISTRY, Graph, Plan, Recommender, create, find
from exporter.models.hybrid import Hybrid
from exporter.models.itemknn import ItemKNN
from exporter.models.personal import Personal
from exporter.models.popularity import Popularity
from exporter.models.rules import Rules
from exporter.models.sasrec import SASRec

__all__ = [
    "REGISTRY",
    "Graph",
    "Hybrid",
    "ItemKNN",
    "Personal",
    "Plan",
    "Popularity",
    "Recommender",
    "Rules",
    "SASRec",
    "create",
    "find",
]
