"""Labels of synthetic images; hard labels are `core.plan.HardLabels`."""
