"""The command line: Typer commands, output, error sentences. It holds no logic worth testing twice."""
