"""Remedies for exposure bias and for overfitting: functions ``Objective -> Objective``, per example, in any order."""
