"""What several tests share: checkpoint makers, exact references, and ways to run the program."""
