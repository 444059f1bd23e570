/* NaN in an input whose floats become bytes: the row's floats in the outputs that depend on these bytes become
   NaN, as a model of floats has them. LOOKED, FLOATS and DOUBLES are numbers in a row of each input or output,
   0 for those that don't count; SPOILS says by which inputs an output is spoiled. */
static int nan_among(const float *x, long count) {
  i32 found = 0;
  for (long i = 0; i < count; i++) found |= x[i] != x[i];
  return found;
}

static int nan_given(const struct call *c) {
  int found = 0;
  for (int i = 0; i < INPUTS; i++)
    if (LOOKED[i]) found |= nan_among(c->in[i], c->rows * LOOKED[i]);
  return found;
}

static void nan_answered(const struct call *c) {
  for (long r = 0; r < c->rows; r++) {
    int found[INPUTS];
    for (int i = 0; i < INPUTS; i++)
      found[i] = LOOKED[i] && nan_among((const float *)c->in[i] + r * LOOKED[i], LOOKED[i]);
    for (int i = 0; i < OUTPUTS; i++) {
      int spoiled = 0;
      for (int k = 0; k < INPUTS; k++) spoiled |= found[k] && SPOILS[i][k];
      if (!spoiled) continue;
      for (long k = 0; k < FLOATS[i]; k++) ((float *)c->out[i])[r * FLOATS[i] + k] = NAN_F;
      for (long k = 0; k < DOUBLES[i]; k++) ((double *)c->out[i])[r * DOUBLES[i] + k] = NAN_D;
    }
  }
}
