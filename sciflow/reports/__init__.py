"""What a run leaves for people: tables, numbers, a page of pictures, a model's card."""
