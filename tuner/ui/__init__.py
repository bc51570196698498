"""The page: one file per tab, what a visitor can do, and the HTML that is shown."""
