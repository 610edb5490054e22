"""The stages of the tool as functions, one a module; the command line is a thin layer over them.

Stages that take long have an argument `progress`: bars and stages on stderr where that is a terminal, nothing
elsewhere; an object of your own (`compressor.progress.Progress`) gets both, and `SILENT` of that module none.
"""
