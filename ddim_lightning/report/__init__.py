"""Results are shown to a person: contact sheets, tables, and the account of an installation."""
