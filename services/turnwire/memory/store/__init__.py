"""What the memory service keeps: banks, which documents they hold, and the text of the chunks."""
