"""How fast this project is, against yardsticks that anyone can read: `lipbench speed`."""
