/* Probabilities of k classes from those of each pair's first class, by algorithm 2 of Wu, Lin and Weng, "Probability
   Estimates for Multi-class Classification by Pairwise Coupling", 2004. Q is k x k, and row has k numbers. The rounds end
   once no error is as large as close; a NaN among the pairs ends them at once. */
static void couple(const float *pairs, long k, float close, float *q, float *row, float *p) {
  for (long i = 0; i < k; i++) {
    p[i] = 1.0f / (float)k;
    q[i * k + i] = 0;
  }
  for (long i = 0; i < k; i++)
    for (long j = i + 1; j < k; j++) {
      const float first = *pairs++, second = 1 - first;
      q[i * k + i] += second * second;
      q[j * k + j] += first * first;
      q[i * k + j] = q[j * k + i] = -second * first;
    }
  for (int round = 0; round < 100; round++) {
    float mean = 0, worst = 0;
    for (long i = 0; i < k; i++) {
      row[i] = 0;
      for (long j = 0; j < k; j++) row[i] += q[i * k + j] * p[j];
      mean += p[i] * row[i];
    }
    for (long i = 0; i < k; i++) {
      const float error = row[i] < mean ? mean - row[i] : row[i] - mean;
      if (error > worst) worst = error;
    }
    if (worst < close) return;
    for (long i = 0; i < k; i++) {
      const float own = q[i * k + i], step = (mean - row[i]) / own, whole = 1 + step;
      p[i] += step;
      mean = (mean + step * (step * own + 2 * row[i])) / whole / whole;
      for (long j = 0; j < k; j++) {
        row[j] = (row[j] + step * q[i * k + j]) / whole;
        p[j] /= whole;
      }
    }
  }
}
