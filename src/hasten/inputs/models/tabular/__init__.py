"""Models of rows: those of scikit-learn, XGBoost, LightGBM and CatBoost as ONNX files."""
