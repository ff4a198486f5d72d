"""What several pages share: headings, figures, pickers, the token view."""
