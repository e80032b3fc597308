import pkgutil

import outlast


def test_no_function_of_the_api_is_hidden_by_a_subpackage():
    modules = {module.name for module in pkgutil.iter_modules(outlast.__path__)}
    assert not modules & set(outlast.__all__)
    assert all(callable(getattr(outlast, name)) for name in outlast.__all__)
    assert set(outlast.__all__) <= set(dir(outlast))
