"""A storyboard in one file to show around: a page, a moving picture."""
