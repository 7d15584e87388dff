"""How far a separation of two sets of scores can be believed: ranks, intervals, null distributions, operating points.

Pure functions on tensors. `ranks` has the AUROC itself; every other module asks one question of it.
"""
