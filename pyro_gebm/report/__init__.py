"""What a run leaves on disk: its folder, its figures step by step, tables as text."""

from pyro_gebm.report.folder import PICTURES, RunFolder, write_json, write_text
from pyro_gebm.report.metrics_log import MetricsLog
from pyro_gebm.report.page import Page, Picture, Section, Table, render_page
from pyro_gebm.report.table import format_table
from pyro_gebm.report.tensorboard import TensorBoardLog
from pyro_gebm.report.writer import Figure, StepWriter

__all__ = [
    "PICTURES",
    "Figure",
    "MetricsLog",
    "Page",
    "Picture",
    "RunFolder",
    "Section",
    "StepWriter",
    "Table",
    "TensorBoardLog",
    "format_table",
    "render_page",
    "write_json",
    "write_text",
]
