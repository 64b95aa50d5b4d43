"""The zoo. A model is known to `--model` once it is imported here; `base.py` is the contract it keeps."""

from exporter.models.base import REGISTRY, Graph, Plan, Recommender, create, find
from exporter.models.gru4rec import GRU4Rec
from exporter.models.hybrid import Hybrid, TowerHybrid
from exporter.models.itemknn import ItemKNN
from exporter.models.mf import MatrixFactorisation
from exporter.models.ncf import NCF
from exporter.models.personal import Personal
from exporter.models.popularity import Popularity
from exporter.models.rules import Rules
from exporter.models.sasrec import SASRec
from exporter.models.streaming import StreamingTransformer
from exporter.models.twotower import TwoTower

__all__ = [
    "NCF",
    "REGISTRY",
    "GRU4Rec",
    "Graph",
    "Hybrid",
    "ItemKNN",
    "MatrixFactorisation",
    "Personal",
    "Plan",
    "Popularity",
    "Recommender",
    "Rules",
    "SASRec",
    "StreamingTransformer",
    "TowerHybrid",
    "TwoTower",
    "create",
    "find",
]
