"""The mathematics of inversion and editing is here: schedule, steps, inverters, editors and the loops over them."""
