"""The mathematics: schedule, steps, inverters, editors and the loops over them. Tensors in, tensors out; torch only."""
