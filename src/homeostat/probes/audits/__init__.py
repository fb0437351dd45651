"""`audit`: accuracy, residuals, alignment and limits over budgets, and the verdict."""
