"""What a person looks at: contact sheets, and the account of an installation."""
