"""Operations of plans: each one checks what it is given and writes itself as C."""
