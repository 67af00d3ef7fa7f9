"""The mathematics of inversion and editing: schedule, steps, inverters, editors and the loops over them."""
