"""The only place that wires objects together: command line, workers, recipes."""
